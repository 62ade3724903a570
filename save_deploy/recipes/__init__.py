"""Recipes: one TOML file per row of the paper's tables, and what the paper says about that row."""
