"""What is in this folder is imported as ``cupy``: there is nothing to collect in it."""

collect_ignore_glob = ["*"]
