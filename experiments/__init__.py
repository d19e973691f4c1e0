"""One question a script; `python -m experiments.NAME` answers it, `make experiments` answers all."""
