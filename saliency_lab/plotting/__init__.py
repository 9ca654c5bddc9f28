"""Figures from plain arrays and tables: each function returns a matplotlib Figure."""
