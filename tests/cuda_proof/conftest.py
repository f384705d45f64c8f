"""These modules are tools of the tests beside this folder: there is nothing to collect in them."""

collect_ignore_glob = ["*.py"]
