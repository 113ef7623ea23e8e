"""Turn weights that others published into model folders: of any architecture in timm, or of the method's authors."""
