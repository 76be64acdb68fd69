"""Scaling curves: the points of a ladder of runs, lines through them, and what one family saves over another."""
