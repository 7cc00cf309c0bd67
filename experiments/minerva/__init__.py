"""Minerva: answers graded and voted on, and graders against others."""
