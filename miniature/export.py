def save_checkpoint(*a, **k):
    raise NotImplementedError
