"""DeepLabV3 and DeepLabV3+; their config keys are those of Detectron2's DeepLab project."""
