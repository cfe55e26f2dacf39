"""Studies: which networks are trained on which data with which seeds, and the table of their finished runs."""
