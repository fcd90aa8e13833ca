"""Commands: python -m dgunet.tools.NAME, each with --help."""
