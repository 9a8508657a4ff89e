"""RPAT (ICCV 2025, arXiv 2508.02186): adversarial training whose logits change linearly from x to x'."""
