"""Scores: protocols, tables, and what every task's test.py and evaluate.py share."""
