// Greets over HTTP/1.1. Standard library only.
'use strict';

const http = require('http');

function text(res, status, body) {
  res.writeHead(status, { 'Content-Type': 'text/plain; charset=utf-8', 'Content-Length': Buffer.byteLength(body) });
  res.end(body);
}

const server = http.createServer((req, res) => {
  const path = req.url.split('?', 1)[0];
  if (req.method === 'GET' && path === '/') {
    text(res, 200, `Hello, ${process.env.TARGET || 'World'}!\n`);
  } else if (req.method === 'GET' && path === '/healthz') {
    text(res, 200, 'ok\n');
  } else if (req.method === 'GET' && path === '/env') {
    res.writeHead(200, { 'Content-Type': 'application/json' });
    res.end(JSON.stringify(process.env));
  } else if (req.method === 'POST' && path === '/echo') {
    const headers = { 'Content-Type': req.headers['content-type'] || 'application/octet-stream' };
    if (req.headers['content-length']) headers['Content-Length'] = req.headers['content-length'];
    res.writeHead(200, headers);
    req.pipe(res);
  } else {
    text(res, 404, 'not found\n');
  }
});

const port = Number(process.env.PORT || 8080);
server.listen(port, '0.0.0.0', () => console.log(`listening on 0.0.0.0:${port}`));
process.on('SIGTERM', () => {
  server.close(() => process.exit(0));
  if (server.closeIdleConnections) server.closeIdleConnections();
});
