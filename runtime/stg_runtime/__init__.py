"""Synthesize video with Langevin dynamics on an exported energy gradient; never imports torch."""
