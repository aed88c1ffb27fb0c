'use strict';
// Answers with everything that it takes for random. It is what an ordinary
// program does, and knows nothing of snapshots.

const crypto = require('crypto');
const fs = require('fs');
const http = require('http');
const os = require('os');
const path = require('path');
const tls = require('tls');

const secure = { key: fs.readFileSync('key.pem'), cert: fs.readFileSync('cert.pem') };

// Talks TLS with itself.
const echo = tls.createServer(secure, (c) => c.end());
echo.listen(0, '127.0.0.1');

function handshake(add) {
  return new Promise((done, failed) => {
    const c = tls.connect({ port: echo.address().port, host: '127.0.0.1', rejectUnauthorized: false });
    c.on('keylog', (line) => {
      const [name, random, secret] = line.toString().trim().split(' ');
      add('tls ' + name, secret);
      add('tls client random ' + name, random);
    });
    c.on('error', failed);
    c.on('close', done);
    c.resume();
  });
}

async function collect(add) {
  add('randomBytes', crypto.randomBytes(16).toString('hex'));
  add('randomUUID', crypto.randomUUID());
  add('webcrypto.randomUUID', crypto.webcrypto.randomUUID ? crypto.webcrypto.randomUUID() : crypto.randomUUID());
  add('getRandomValues', Buffer.from(crypto.webcrypto.getRandomValues(new Uint8Array(16))).toString('hex'));
  add('randomInt', [1, 2].map(() => crypto.randomInt(2 ** 40)).join());
  add('randomInt, asynchronous', await new Promise((y, n) => crypto.randomInt(2 ** 47, (e, v) => e ? n(e) : y(String(v)))));
  add('Math.random', String(Math.random()));
  add('key pair', crypto.generateKeyPairSync('ed25519').privateKey.export({ type: 'pkcs8', format: 'der' }).toString('hex'));
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'clone-'));
  fs.rmdirSync(dir);
  add('mkdtemp', dir);
  await handshake(add);
}

http.createServer(async (req, res) => {
  const values = {};
  try {
    for (let i = 0; i < 3; i++) await collect((name, v) => (values[name] ??= new Set()).add(v));
    for (const name in values) values[name] = [...values[name]];
    res.end(JSON.stringify(values));
  } catch (e) {
    res.statusCode = 500;
    res.end(String(e.stack));
  }
}).listen(8080);
