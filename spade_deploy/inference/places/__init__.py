"""The places where label maps come from and images go to: folders, lists, shards, tables and object stores."""
