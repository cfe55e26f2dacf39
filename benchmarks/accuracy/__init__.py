"""The evidence: studies (YAML), the tables of their finished runs (results/), and the page made of both."""
