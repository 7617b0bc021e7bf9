// A web server as many are written: it says who it is, and on SIGTERM or SIGINT finishes what it has begun.
// PORT, HOST and NAME say where and who.
'use strict';
const http = require('node:http');

const { PORT = '8080', HOST = '0.0.0.0', NAME = '' } = process.env;

const server = http.createServer((request, response) => response.end(`${NAME} pid ${process.pid}\n`));
// pm2 waits for this word before it lets the old process go.
server.listen(Number(PORT), HOST, () => process.send && process.send('ready'));

for (const signal of ['SIGTERM', 'SIGINT']) {
  process.on(signal, () => {
    // In a cluster a connection may be on its way to this process: it gives it back while it still lives.
    server.close(() => setTimeout(() => process.exit(0), 300));
  });
}
