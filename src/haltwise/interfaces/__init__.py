"""Callbacks for other people's trainers; each needs its package, an optional extra."""
