collect_ignore = ["example_package"]
