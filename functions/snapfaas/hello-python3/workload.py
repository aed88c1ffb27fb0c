def handle(obj):
    """Says hello; obj is what the request's JSON line held."""
    name = obj.get("name", "world") if isinstance(obj, dict) else "world"
    return {"message": "hello, " + str(name)}
