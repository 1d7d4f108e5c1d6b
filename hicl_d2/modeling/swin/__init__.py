"""The backbone Swin under the names of Mask2Former's project."""
