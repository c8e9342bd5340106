"""Quantisation-aware training of one stage."""
