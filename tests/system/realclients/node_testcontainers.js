// SPDX-License-Identifier: Apache-2.0
// testcontainers for Node: each way to wait, networks with aliases, files, exec, logs, commit, a built image, and a
// compose project by Debian's compose.
'use strict';

const fs = require('fs');
const os = require('os');
const path = require('path');
const { DockerComposeEnvironment, GenericContainer, Network, Wait } = require('testcontainers');
const Docker = require('dockerode');

const docker = new Docker();
const said = {};
const SERVER = 'mkdir -p /www; echo served >/www/index.html; echo begun; exec httpd -f -p 80 -h /www';

async function step(name, call) {
  process.stderr.write(`${name}\n`); // where it stands still, its test shows the last one
  try {
    const value = await call();
    said[name] = value === undefined ? null : value;
  } catch (error) {
    said[name] = { error: error.constructor.name, status: error.statusCode || null };
  }
  return said[name];
}

const server = () => new GenericContainer('busybox').withCommand(['sh', '-c', SERVER]).withExposedPorts(80).withStartupTimeout(20000);

// The server says that it begins before it listens.
async function page(host, port) {
  for (let tries = 0; ; tries += 1) {
    try {
      return await (await fetch(`http://${host}:${port}/`)).text();
    } catch (error) {
      if (tries === 50) throw error;
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }
}

async function waits() {
  const ways = {
    log: Wait.forLogMessage('begun'),
    'log by pattern': Wait.forLogMessage(/beg.n/, 1),
    http: Wait.forHttp('/', 80).forStatusCode(200),
    command: Wait.forSuccessfulCommand('test -e /www/index.html'),
    all: Wait.forAll([Wait.forLogMessage('begun'), Wait.forListeningPorts()]),
  };
  for (const [name, way] of Object.entries(ways)) {
    await step(`waits for ${name}`, async () => {
      const started = await server().withWaitStrategy(way).start();
      const text = await page(started.getHost(), started.getMappedPort(80));
      await started.stop();
      return text;
    });
  }
  await step('health', async () => {
    const sick = new GenericContainer('busybox').withCommand(['sleep', '100']).withStartupTimeout(20000);
    await sick.withHealthCheck({ test: ['CMD', 'false'], interval: 100, retries: 2, timeout: 1000 }).withWaitStrategy(Wait.forHealthCheck()).start();
  });
  await step('ends with 0', async () => {
    const started = await new GenericContainer('busybox').withCommand(['true']).withWaitStrategy(Wait.forOneShotStartup()).start();
    await started.stop();
    return true;
  });
  await step('ends with 3', () => new GenericContainer('busybox').withCommand(['sh', '-c', 'exit 3']).withWaitStrategy(Wait.forOneShotStartup()).start());
  await step('no image', () => new GenericContainer('localhost:1/nosuch:1').start());
}

async function together(folder) {
  const network = await new Network().start();
  fs.writeFileSync(path.join(folder, 'file'), 'copied file\n');
  const web = await server().withNetwork(network).withNetworkAliases('web').withEnvironment({ A: 'b' }).withLabels({ mine: 'yes' })
    .withCopyFilesToContainer([{ source: path.join(folder, 'file'), target: '/copied/file', mode: 0o600 }])
    .withCopyContentToContainer([{ content: 'content\n', target: '/content' }])
    .withTmpFs({ '/scratch': 'rw,size=1m' }).withUlimits({ nofile: { hard: 500, soft: 400 } }).withHostname('webhost')
    .withBindMounts([{ source: folder, target: '/given', mode: 'ro' }]).withDroppedCapabilities('MKNOD')
    .withExtraHosts([{ host: 'other', ipAddress: '192.0.2.7' }]).withWorkingDir('/www').withUser('0').withSharedMemorySize(1 << 20)
    .withWaitStrategy(Wait.forLogMessage('begun')).start();
  const asks = await new GenericContainer('busybox').withCommand(['sleep', '100']).withNetwork(network).start();
  await step('by alias', () => asks.exec(['wget', '-qO-', 'http://web/']));
  await step('fails', () => web.exec(['sh', '-c', 'echo e >&2; exit 4']));
  await step('as another', () => web.exec(['sh', '-c', 'id -u; pwd; echo $C'], { user: 'nobody', workingDir: '/tmp', env: { C: 'd' } }));
  await step('inside', async () => (await web.exec(['sh', '-c', 'cat /copied/file /content /given/file; stat -c %a /copied/file; hostname; ulimit -n; df -k /dev/shm | tail -1 | cut -c1-30'])).stdout);
  await step('copied later', async () => {
    await web.copyContentToContainer([{ content: 'later', target: '/tmp/later' }]);
    return (await web.exec('cat /tmp/later')).stdout;
  });
  await step('archive', async () => {
    const stream = await web.copyArchiveFromContainer('/copied');
    const parts = [];
    for await (const part of stream) parts.push(part);
    return Buffer.concat(parts).toString().includes('copied file');
  });
  await step('logs', async () => {
    const stream = await web.logs({ tail: 1 });
    const first = await new Promise((resolve) => stream.once('data', resolve));
    stream.destroy();
    return String(first);
  });
  await step('names', () => [web.getNetworkNames().length, web.getLabels().mine, web.getHostname(), web.getIpAddress(web.getNetworkNames()[0]).split('.').length]);
  await step('commit', async () => { const image = await web.commit({ repo: 'tsnode', tag: '1', deleteOnExit: false }); return [image.slice(0, 7), Object.keys((await docker.getImage('tsnode:1').inspect()).Config.Labels || {}).includes('mine')]; });
  await step('network in use', () => network.stop());
  const id = web.getId();
  await step('stop and keep', async () => { await asks.stop(); await web.stop({ remove: false, timeout: 1 }); return (await docker.getContainer(id).inspect()).State.Status; });
  await step('kept one goes', async () => Boolean(await docker.getContainer(id).remove()));
  await step('network goes', () => network.stop());
  await step('image goes', async () => Boolean(await docker.getImage('tsnode:1').remove()));
}

async function built(folder) {
  fs.writeFileSync(path.join(folder, 'Dockerfile'), 'FROM busybox AS first\nARG WHAT\nRUN echo $WHAT >/said\nFROM first AS second\nCMD cat /said && sleep 100\nFROM second\nCMD exit 9\n');
  const build = await step('build', async () => {
    const image = await GenericContainer.fromDockerfile(folder).withBuildArgs({ WHAT: 'said' }).withTarget('second').build('tsbuilt:1', { deleteOnExit: false });
    const started = await image.withWaitStrategy(Wait.forLogMessage('said')).start();
    await started.stop();
    return true;
  });
  await step('build by BuildKit', async () => Boolean(await GenericContainer.fromDockerfile(folder).withBuildArgs({ WHAT: 'kit' }).withBuildkit().build('tsbuilt:2', { deleteOnExit: false })));
  await step('build fails', async () => {
    fs.writeFileSync(path.join(folder, 'Bad'), 'FROM busybox\nRUN exit 5\n');
    await GenericContainer.fromDockerfile(folder, 'Bad').build('tsbuilt:3', { deleteOnExit: false });
  });
  fs.writeFileSync(path.join(folder, 'compose.yaml'), `services:\n  web:\n    image: busybox\n    init: false\n    stop_grace_period: 0s\n    command: ["sh", "-c", ${JSON.stringify(SERVER)}]\n    ports: [80]\n`);
  await step('compose', async () => {
    const up = await new DockerComposeEnvironment(folder, 'compose.yaml').withProjectName('tscompose').withPullPolicy({ shouldPull: () => false }).withWaitStrategy('web-1', Wait.forLogMessage('begun')).up();
    const web = up.getContainer('web-1');
    const text = await page(web.getHost(), web.getMappedPort(80));
    await up.down();
    return text;
  });
  for (const name of ['tsbuilt:1', 'tsbuilt:2']) await step(`${name} goes`, async () => Boolean(await docker.getImage(name).remove({ force: true })));
  return build;
}

(async () => {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'tsnode-'));
  setInterval(() => {}, 1000); // testcontainers does not stay for its connections for logs
  await waits();
  await together(folder);
  await built(folder);
  await step('left', async () => (await docker.listContainers({ all: true, filters: { label: ['org.testcontainers'] } })).length);
  console.log(JSON.stringify(said));
  process.exit(0);
})().catch((error) => { console.error(error); process.exit(1); });
