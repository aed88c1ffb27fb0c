// Skep's Node.js runtime for SnapFaaS's tools: it runs in the guest. See
// main.py for the protocol.
'use strict';
const fs = require('fs');
const net = require('net');
const Module = require('module');

const PORT = Number(process.env.SKEP_RUNTIME_PORT || 1234);
const APP = process.env.SKEP_RUNTIME_APP || '/srv';
const LIMIT = 16 << 20; // bytes of a message
let handle = null;

// load requires the app: the module workload, with its packages beside it.
function load() {
  process.env.NODE_PATH = `${APP}/package:${APP}/node_modules`;
  Module._initPaths();
  const app = require(`${APP}/workload`);
  handle = typeof app === 'function' ? app : app.handle;
  if (typeof handle !== 'function') throw new Error('workload exports no function handle');
}

function send(conn, message) {
  let data;
  try {
    data = Buffer.from(JSON.stringify(message));
  } catch (e) { // not JSON
    data = Buffer.from(JSON.stringify({ type: 'error', error: String(e) }));
  }
  if (data.length > LIMIT) {
    data = Buffer.from(JSON.stringify({ type: 'error', error: `the response is larger than ${LIMIT} bytes` }));
  }
  const head = Buffer.alloc(4);
  head.writeUInt32BE(data.length);
  conn.write(Buffer.concat([head, data]));
}

async function answer(message) {
  try {
    switch (message.type) {
      case 'load-app':
        if (!handle) load();
        return { type: 'app-ready' };
      case 'request': {
        if (!handle) throw new Error('no app is loaded');
        const payload = await handle(message.payload === undefined ? null : message.payload);
        return { type: 'response', payload: payload === undefined ? null : payload };
      }
      default:
        throw new Error(`unknown message ${message.type}`);
    }
  } catch (e) {
    return { type: 'error', error: String((e && e.stack) || e).slice(0, 8192) };
  }
}

function serve(conn) {
  conn.setNoDelay(true);
  conn.on('error', (e) => console.error(`connection: ${e.message}`));
  send(conn, { type: handle ? 'app-ready' : 'runtime-ready', runtime: 'nodejs' });
  let pending = Buffer.alloc(0);
  let busy = false;
  let ended = false;
  const next = async () => {
    if (busy) return;
    busy = true;
    while (pending.length >= 4) {
      const size = pending.readUInt32BE(0);
      if (size > LIMIT) {
        conn.destroy(new Error(`a message of ${size} bytes`));
        return;
      }
      if (pending.length < 4 + size) break;
      const data = pending.subarray(4, 4 + size);
      pending = Buffer.from(pending.subarray(4 + size));
      let message;
      try {
        message = JSON.parse(data);
      } catch (e) {
        conn.destroy(e);
        return;
      }
      send(conn, await answer(message));
    }
    busy = false;
    if (ended) conn.end();
  };
  conn.on('data', (data) => {
    pending = Buffer.concat([pending, data]);
    next();
  });
  conn.on('end', () => {
    ended = true;
    if (!busy) conn.end();
  });
}

if (fs.existsSync(APP) && fs.readdirSync(APP).some((n) => n.split('.')[0] === 'workload')) {
  load(); // the app is part of the root file system
}
net.createServer({ allowHalfOpen: true }, serve).listen(PORT, '0.0.0.0');
