"""ResNets with dilated last stages, the backbones of DeepLab."""
