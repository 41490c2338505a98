"""Who did what to which object, before and after, from where. django-auditlog writes the entries, this app says who acted and seals
them. Imports ``common``, ``accounts``; the objects themselves are named in the settings, so that it knows none of them.
"""
