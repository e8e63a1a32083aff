"""The networks against the published implementations: what `make verify` runs, and what the tests compare with."""
