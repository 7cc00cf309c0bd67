"""Pix2Seq: detection as a sequence of tokens, and its metric against others."""
