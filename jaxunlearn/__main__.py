"""`python -m jaxunlearn`: the command line."""

from jaxunlearn.cli.app import main

if __name__ == "__main__":
    raise SystemExit(main())
