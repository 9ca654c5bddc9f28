"""What all packages share. It imports no other package of saliency_lab."""
