"""Thin helper package of the collection: what two or more notebooks share, and what runs them.

Importing it loads nothing; import the module you need (``from helpers import notebooks``).
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The repository's folder: notebooks/, data/ and helpers/ stand in it."""
