// Says hello; obj is what the request's JSON line held.
exports.handle = async (obj) => ({ message: `hello, ${(obj && obj.name) || 'world'}` });
