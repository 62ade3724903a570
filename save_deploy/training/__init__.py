"""Training from scratch (vit_t), or of adapters on a frozen SAM (vit_b, vit_l, vit_h)."""
