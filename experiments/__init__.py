"""Each script answers one question; `python -m experiments.NAME` runs one, `make experiments` runs all."""
