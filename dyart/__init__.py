"""DyART: "Exploring and Exploiting Decision Boundary Dynamics for Adversarial Robustness" (ICLR 2023, arXiv 2302.03015;
code: umd-huang-lab/Dynamics-Aware-Robust-Training).
"""
