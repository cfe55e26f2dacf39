"""How fast a conditional network is, and what memory it takes, beside its static twin and timm's implementation."""
