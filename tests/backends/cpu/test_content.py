"""What a kernel is kept under: the content of all that it reaches."""

from __future__ import annotations

import importlib
import textwrap

import pytest
from numba.extending import intrinsic
from processes import script

from invocupy.backends.cpu import content, jit, vector


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory of kernels of its own."""
    monkeypatch.setenv("INVOCUPY_CACHE_DIR", str(tmp_path / "kernels"))
    jit._place.cache_clear()
    yield tmp_path / "kernels"
    monkeypatch.undo()
    jit._place.cache_clear()


def adding(number):
    def add(x):
        return x + number

    return jit.jit(add)


FACTOR = 2
TABLE = {1: (2.0, "a"), 2: (3.0, "b")}

# ----------------------------------------------------------------------------- what a kernel reads


def helper(x, more=1):
    return FACTOR * x + more


class Emitter:
    def emit(self, x):
        return x + 1

    @staticmethod
    def plain(x):
        return x

    @property
    def half(self):
        return 0.5


@intrinsic
def emitted(typing, x):
    def codegen(context, builder, signature, args):
        return Emitter().emit(args[0])

    return x(x), codegen


def reads(x):
    return helper(x) + emitted(x) + TABLE[1][0] + vector.LINE + max(x, *(y for y in (x, FACTOR)))


CHANGES = {
    "a constant": (__name__, "FACTOR", 3),
    "its type": (__name__, "FACTOR", 2.0),
    "an entry of a table": (__name__, "TABLE", {1: (2.0, "c"), 2: (3.0, "b")}),
    "a function's code": ("helper", "__code__", (lambda x, more=1: FACTOR * x - more).__code__),
    "a function's default": ("helper", "__defaults__", (2,)),
    "a method": ("Emitter", "emit", lambda self, x: x + 2),
    "a static method": ("Emitter", "plain", staticmethod(lambda x: -x)),
    "a property": ("Emitter", "half", property(lambda self: 0.25)),
    "a base class": ("Emitter", "more", 1),
    "a constant of another module": (vector, "LINE", 128),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_digest_covers_all_that_a_function_reaches(change, monkeypatch):
    owner, name, value = CHANGES[change]
    space = reads.__globals__
    before = content.digest(reads)
    if owner == __name__:
        monkeypatch.setitem(space, name, value)
    else:
        target = space[owner] if isinstance(owner, str) else owner
        monkeypatch.setattr(target, name, value, raising=False)
    assert content.digest(reads) != before
    monkeypatch.undo()
    assert content.digest(reads) == before


def test_the_digest_of_closures_and_of_what_they_hold():
    def outer(inner, number):
        return jit.jit(lambda x: inner(x) + number).py_func

    one, two, same = adding(1), adding(2), adding(1)
    first = content.digest(outer(one, 1))
    assert content.digest(outer(same, 1)) == first
    others = [outer(two, 1), outer(one, 2), outer(one, True), outer(one, 1.0), outer(helper, 1)]
    assert len({first, *map(content.digest, others)}) == 6


def test_the_digest_does_not_depend_on_the_process():
    body = """
    import sys
    from importlib import import_module
    for name in sys.argv[1].split():
        import_module("invocupy.backends.cpu." + name)
    from invocupy.backends.cpu import content, contract, pool as workers, planes
    from invocupy.backends.reference import involution
    from invocupy.backends.cpu.involution.gather import gather
    kernels = workers._lead, workers._serve, contract.product(32, 1), planes.planes(64).lay
    print([content.digest(kernel.py_func) for kernel in kernels])
    """
    orders = "pool pooling", "pooling convolution perceptron planes pool"
    outputs = [script(body, arguments=[o], PYTHONHASHSEED=str(i)) for i, o in enumerate(orders)]
    assert outputs[0] == outputs[1]
    assert outputs[0] != script(
        body, arguments=[orders[0]], NUMBA_CPU_NAME="generic"
    )  # other vectors


def test_nothing_is_kept_of_what_was_loaded_again(tmp_path, monkeypatch, place):
    (tmp_path / "loaded_again.py").write_text(
        "from invocupy.backends.cpu.jit import jit\nNUMBER = 1\n"
        "@jit\ndef inner(x):\n    return x + NUMBER\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("loaded_again")
    inner = module.inner
    assert inner(1) == 2
    importlib.reload(module)
    module.NUMBER = 5

    def outer(x):
        return inner(x) * 2

    files = sorted(place.iterdir())
    assert jit.jit(outer)(1) == 4  # as compiled
    assert sorted(place.iterdir()) == files
    with pytest.raises(RuntimeError, match="loaded_again was loaded again"):
        content.digest(outer)


CHANGED = {
    "a constant": ("FACTOR = 5", "FACTOR = 2"),
    "a function": ("old, helper = helper, register_jitable(lambda x: x)", "helper = old"),
}


@pytest.mark.parametrize("change", CHANGED)
def test_nothing_is_kept_of_what_has_changed_since_a_part_was_compiled(change, tmp_path, place):
    """A kernel goes on using the code of an inner one that was compiled before the change."""
    (tmp_path / "changing.py").write_text(
        textwrap.dedent("""
        from numba.extending import register_jitable
        from invocupy.backends.cpu.jit import jit
        FACTOR = 2

        @register_jitable
        def helper(x):
            return x * FACTOR

        @jit
        def inner(x):
            return helper(x)

        @jit
        def outer(x):
            return inner(x) + 1
        """)
    )
    body = """
    import sys
    import changing
    if len(sys.argv) > 1:
        exec(sys.argv[1], vars(changing))
        changing.inner(1)
        exec(sys.argv[2], vars(changing))
    print(changing.outer(1))
    """
    where = {"cwd": tmp_path, "INVOCUPY_CACHE_DIR": str(place)}
    assert script(body, arguments=CHANGED[change], **where) != "3"  # as compiled
    assert script(body, **where) == "3"


@pytest.mark.parametrize("late", [False, True], ids=["before the change", "after the change"])
def test_sources_that_change_under_a_process(late, tmp_path):
    """Version A; imported before or after the change to B; compiled then; A again."""
    source = tmp_path / "kernels.py"
    version = "from invocupy.backends.cpu.jit import jit\n@jit\ndef add(x):\n    return x + {}\n"
    source.write_text(version.format(1000))
    body = """
    import sys
    from pathlib import Path
    import invocupy.backends.cpu.jit as jit
    jit.jit(lambda x: x)(1)  # in use before
    source = Path("kernels.py")
    if sys.argv[1] == "early": import kernels
    text = source.read_text()
    source.write_text(text.replace("1000", "20000"))
    import kernels
    print(kernels.add(1))
    source.write_text(text)
    """
    where = {"INVOCUPY_CACHE_DIR": str(tmp_path / "kept"), "PYTHONDONTWRITEBYTECODE": "1"}
    got = script(body, arguments=["late" if late else "early"], cwd=tmp_path, **where)
    assert got == ("20001" if late else "1001")
    again = "import kernels; print(kernels.add(1), sum(kernels.add.stats.cache_hits.values()))"
    assert script(again, cwd=tmp_path, **where) == ("1001 0" if late else "1001 1")
    source.write_text(version.format(20000))
    assert script(again, cwd=tmp_path, **where) == ("20001 1" if late else "20001 0")


def twice(x):
    return 2 * x


def reading_a_field(record):
    return record.twice


def test_a_field_is_no_global_of_the_same_name(monkeypatch):
    before = content.digest(reading_a_field)
    monkeypatch.setitem(globals(), "twice", adding(1))
    assert content.digest(reading_a_field) == before


def test_a_second_process_compiles_nothing():
    """Also where the digest of a kernel fails: then it is not kept, and nobody would notice."""
    code = """
        import numpy as np
        from invocupy import Tensor, backends, models, nn, functional as F
        compiled = []
        backends.on_compile = lambda name, done: compiled.append(name)
        x = Tensor(np.ones((1, 3, 8, 8), "f4"), requires_grad=True)
        F.linear(np.ones((4, 8), "f4"), np.ones((3, 8), "f4"), np.ones(3, "f4"))
        layers = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.MaxPool2d(2),
            nn.Involution(16), nn.Involution(16, fused=True), nn.Conv2d(16, 16, 3, groups=16),
        )
        for model in (models.SimpleModel(8, 8, num_layers=1).logits, layers):
            model(x).sum().backward()
        print(len(compiled))
    """
    script(code)
    assert script(code) == "0"
