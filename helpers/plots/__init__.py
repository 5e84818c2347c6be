"""Figures from numbers. Functions take data and an optional `ax`, return Axes, and know no model."""
