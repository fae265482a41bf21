"""Recipes side by side: each one's run is measured once, kept under its fingerprint, and told as plain data."""
