"""Figures that can be trusted: ROUGE, BLEU, their tests, baselines, faithfulness."""
