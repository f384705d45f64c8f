"""The style of the page: light and dark, wide and narrow."""

STYLE = """
:root{--ink:#1c1f24;--soft:#5c6470;--paper:#fff;--line:#dfe3e8;--card:#f6f7f9;
--train:#0072b2;--test:#d55e00;--deep:#fff}
@media(prefers-color-scheme:dark){:root{--ink:#e8eaed;--soft:#9aa3af;--paper:#14171b;
--line:#2c323a;--card:#1c2127;--train:#56b4e9;--test:#e69f00;--deep:#0b0d10}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:72rem;margin:0 auto;padding:1.5rem 1.25rem 3rem}
header p,footer,figcaption span,th span,.facts span{color:var(--soft)}
header p{margin:0;font-size:.875rem}
h1{margin:.1rem 0 1rem;font-size:1.9rem;line-height:1.2;overflow-wrap:anywhere}
h2{margin:0 0 .75rem;font-size:1.2rem}
section{margin-top:2.5rem;padding-top:1.5rem;border-top:1px solid var(--line)}
section p{max-width:44rem;margin:0 0 1rem}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.75rem;
margin:0;padding:0;list-style:none}
.facts li{padding:.7rem .9rem;background:var(--card);border-radius:.5rem}
.facts b{display:block;font-size:1.15rem;line-height:1.3}
.facts span{font-size:.8125rem}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(20rem,100%),1fr));gap:1.5rem}
figure{margin:0}
.charts figcaption{display:flex;justify-content:space-between;font-size:.875rem;font-weight:600}
.key{font-weight:400}
.key i{display:inline-block;width:.9rem;height:.2rem;margin:0 .35rem .2rem .7rem;
border-radius:.1rem}
.key i.train{background:var(--train)}.key i.test{background:var(--test)}
svg{display:block;width:100%;height:auto}
svg text{font-size:12px;fill:var(--soft)}
.grid{stroke:var(--line);fill:none}
.line{fill:none;stroke-width:2.2;stroke-linejoin:round;stroke:var(--ink)}
circle{fill:var(--ink)}
.line.train{stroke:var(--train)}.line.test{stroke:var(--test)}
circle.train{fill:var(--train)}circle.test{fill:var(--test)}
.wide{overflow-x:auto;-webkit-overflow-scrolling:touch}
table{border-collapse:collapse;font-size:.875rem}
th{font-weight:500;text-align:left}
.confusion td,.confusion tbody th{height:2.25rem;padding:0 .5rem}
.confusion td{min-width:2.9rem;text-align:center;font-variant-numeric:tabular-nums;
border:1px solid var(--paper);
background:color-mix(in srgb,var(--train) var(--s,0%),var(--card))}
.confusion td.deep{color:var(--deep)}
.confusion thead td,.confusion td.share{background:none}
.confusion td.share{color:var(--soft)}
.confusion tbody th{position:sticky;left:0;background:var(--paper);text-align:right}
.confusion thead th{height:6.2rem;vertical-align:bottom;padding:0 0 .4rem}
.confusion thead span{display:block;width:2.9rem;color:var(--ink);white-space:nowrap;
transform-origin:left bottom;transform:translateX(1.7rem) rotate(-50deg)}
.confusion{margin-right:3.5rem}
.shots{display:grid;grid-template-columns:repeat(auto-fill,minmax(6.6rem,1fr));gap:1rem .75rem}
.shots img,.maps img{display:block;width:6.5rem;height:6.5rem;image-rendering:pixelated;
border-radius:.25rem}
.shots figcaption{margin-top:.3rem;font-size:.8125rem;line-height:1.35}
.shots figcaption span{display:block}
.shots .wrong b{color:var(--test)}
.maps{margin-bottom:1.5rem}
.maps th{min-width:5.5rem;padding:.2rem .7rem .2rem 0}
.maps th span{display:block;font-size:.75rem}
.maps td{padding:.2rem}
.many{display:flex;flex-wrap:wrap;gap:1rem 2.5rem}
.many .wide{max-width:100%}
@media(max-width:40rem){.maps img{width:4.1rem;height:4.1rem}
.maps th{min-width:4.4rem;padding-right:.3rem}.maps td{padding:.1rem}}
.scale{display:inline-block;width:6rem;height:.7rem;border-radius:.2rem;vertical-align:-.05rem}
.list th,.list td{padding:.3rem 1.25rem .3rem 0;border-bottom:1px solid var(--line);
vertical-align:top}
.list th{color:var(--soft);white-space:nowrap}
.list td{overflow-wrap:anywhere}
footer{margin-top:3rem;font-size:.8125rem}
"""
