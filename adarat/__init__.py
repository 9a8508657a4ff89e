"""AdaRAT: "Reconcile Accuracy and Robustness by Adaptive Ratio Adversarial Training" (code: xiyan0524/AdaRAT)."""
