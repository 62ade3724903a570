"""Recipes: one TOML file per row of the paper's tables, and the numbers that the paper prints."""
