"""Measurements that the documentation's tables are generated from; results are committed as CSV in `results/`."""
