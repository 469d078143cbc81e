"""Planning: everything about a conversion but the conversion. plan.py what comes out, passes.py the way there."""
