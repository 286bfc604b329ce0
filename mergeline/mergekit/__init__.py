"""Configurations of mergekit (https://github.com/arcee-ai/mergekit) turned into plans."""
