"""Batched generation: the own decoder, transformers' as its reference, CTranslate2."""
