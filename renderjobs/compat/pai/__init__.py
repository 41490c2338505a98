"""What the webui of PAI-EAS adds to A1111's calls: entries of ``alwayson_scripts``, and an answer of paths instead of pictures.

Its queue service is ``compat.eas``; its plain calls are ``compat.sdapi``, which asks here for what is added.
"""
