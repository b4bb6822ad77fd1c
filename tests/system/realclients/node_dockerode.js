// SPDX-License-Identifier: Apache-2.0
// dockerode: hijacked streams, exec, logs that are followed, stats, events, archives, build, commit, prune, errors.
'use strict';

const Docker = require('dockerode');
const tar = require('tar-fs');
const fs = require('fs');
const os = require('os');
const path = require('path');
const { PassThrough } = require('stream');

const docker = new Docker(); // by DOCKER_HOST
const said = {};

async function step(name, call) {
  process.stderr.write(`${name}\n`); // where it stands still, its test shows the last one
  try {
    const value = await call();
    said[name] = value === undefined ? null : value;
  } catch (error) {
    said[name] = { status: error.statusCode || error.code || null, reason: error.reason || null };
  }
  return said[name];
}

const part = (value, ...names) => Object.fromEntries(names.map((name) => [name, value[name]]));

function whole(stream) {
  return new Promise((resolve, reject) => {
    const parts = [];
    stream.on('data', (each) => parts.push(each));
    stream.on('end', () => resolve(Buffer.concat(parts)));
    stream.on('close', () => resolve(Buffer.concat(parts)));
    stream.on('error', reject);
  });
}

// A multiplexed stream, apart.
function apart(container, stream) {
  const out = new PassThrough();
  const err = new PassThrough();
  docker.modem.demuxStream(stream, out, err);
  stream.on('end', () => { out.end(); err.end(); });
  stream.on('close', () => { out.end(); err.end(); });
  return Promise.all([whole(out), whole(err)]).then((both) => both.map(String));
}

// The frames of a multiplexed log: each one's stream and text. Of two pipes nobody knows which was written first.
function frames(log) {
  const found = [];
  for (let at = 0; at < log.length;) {
    const end = at + 8 + log.readUInt32BE(at + 4);
    found.push(`${[...log.subarray(at, at + 4)]} ${log.subarray(at + 8, end)}`);
    at = end;
  }
  return found.sort();
}

function until(probe) {
  return new Promise((resolve) => {
    const deadline = Date.now() + 20000;
    const ask = async () => {
      const value = await probe();
      if (value || Date.now() > deadline) resolve(value);
      else setTimeout(ask, 50);
    };
    ask();
  });
}

const progress = (stream) => new Promise((resolve, reject) => {
  docker.modem.followProgress(stream, (error, lines) => (error ? reject(error) : resolve(lines)));
});

async function images(folder) {
  fs.writeFileSync(path.join(folder, 'Dockerfile'), 'FROM busybox\nARG WHAT\nCOPY file /file\nRUN echo $WHAT >>/file\nLABEL made=by-node\nCMD ["cat", "/file"]\n');
  fs.writeFileSync(path.join(folder, 'file'), 'given\n');
  fs.writeFileSync(path.join(folder, 'ignored'), 'x');
  fs.writeFileSync(path.join(folder, '.dockerignore'), 'ignored\n');
  await step('build', async () => {
    const stream = await docker.buildImage({ context: folder, src: ['Dockerfile', 'file', '.dockerignore', 'ignored'] },
      { t: 'nodebuilt:1', buildargs: JSON.stringify({ WHAT: 'built' }), labels: JSON.stringify({ more: 'labels' }) });
    const lines = await progress(stream);
    return [lines.filter((line) => line.aux).length > 0, lines.map((line) => line.stream || '').join('').includes('Successfully tagged')];
  });
  await step('labels', async () => (await docker.getImage('nodebuilt:1').inspect()).Config.Labels);
  await step('build fails', async () => {
    const stream = await docker.buildImage(tar.pack(folder), { t: 'nodebuilt:2', dockerfile: 'nosuch' });
    return (await progress(stream)).length;
  });
  await step('run fails', async () => {
    fs.writeFileSync(path.join(folder, 'Dockerfile.bad'), 'FROM busybox\nRUN exit 7\n');
    const stream = await docker.buildImage(tar.pack(folder), { dockerfile: 'Dockerfile.bad' });
    const last = (await progress(stream).catch((error) => [{ error: String(error) }])).pop();
    return [Boolean(last.error), last.errorDetail ? last.errorDetail.code : null];
  });
  await step('tag', () => docker.getImage('nodebuilt:1').tag({ repo: 'nodebuilt', tag: 'more' }).then(() => true));
  await step('tags', async () => (await docker.getImage('nodebuilt:1').inspect()).RepoTags.sort());
  await step('saved', async () => (await whole(await docker.getImage('nodebuilt:1').get())).length > 1000000);
  await step('untag', async () => (await docker.getImage('nodebuilt:more').remove()).map((line) => Object.keys(line)[0]));
  await step('no image', () => docker.getImage('nosuch').inspect());
  await step('create of none', () => docker.createContainer({ Image: 'nosuch' }));
  await step('pull from nowhere', async () => progress(await docker.pull('localhost:1/nosuch:1')));
}

async function run() {
  await step('docker.run', async () => {
    const out = new PassThrough();
    const text = whole(out); // it ends with the container's, which may be after run() has
    const [data, container] = await docker.run('nodebuilt:1', [], out, { Tty: true, HostConfig: { AutoRemove: true } });
    return [data.StatusCode, String(await text), Boolean(container.id)];
  });
  await step('docker.run apart', async () => {
    const [out, err] = [new PassThrough(), new PassThrough()];
    const both = Promise.all([whole(out), whole(err)]);
    const heard = Promise.all([out, err].map((each) => new Promise((resolve) => each.once('data', resolve))));
    const [data, container] = await docker.run('busybox', ['sh', '-c', 'echo o; echo e >&2; exit 6'], [out, err], { Tty: false });
    await heard; // nobody ends these
    out.end();
    err.end();
    await container.remove();
    return [data.StatusCode, (await both).map(String)];
  });
}

async function containers(folder) {
  const seen = [];
  const events = await docker.getEvents({ filters: { type: ['container'], label: ['from=node'] } });
  let rest = '';
  events.on('data', (data) => {
    rest += data;
    const lines = rest.split('\n');
    rest = lines.pop();
    lines.filter(Boolean).forEach((line) => { const event = JSON.parse(line); seen.push(event.Action.split(':')[0]); });
  });
  const cat = await docker.createContainer({
    name: 'nodecat', Image: 'busybox', Cmd: ['sh', '-c', 'cat; echo last >&2; exit 3'], OpenStdin: true, StdinOnce: true,
    AttachStdin: true, AttachStdout: true, AttachStderr: true, Labels: { from: 'node' },
    HostConfig: { NetworkMode: 'none', Binds: ['nodedata:/data'], Memory: 0, NanoCpus: 0, ReadonlyRootfs: true, Tmpfs: { '/tmp': 'size=1m' } },
  });
  const attached = await cat.attach({ stream: true, hijack: true, stdin: true, stdout: true, stderr: true });
  const both = apart(cat, attached);
  const waited = cat.wait({ condition: 'next-exit' });
  await cat.start();
  attached.write('through\n');
  attached.end();
  await step('attached', () => both);
  await step('waited', () => waited);
  await step('state', async () => part((await cat.inspect()).State, 'Status', 'ExitCode', 'Running', 'OOMKilled', 'Error'));
  await step('logs', async () => frames(await cat.logs({ stdout: true, stderr: true })));
  await step('started again', async () => { await cat.start({}); await cat.kill({ signal: 'SIGKILL' }); return [await cat.wait(), (await cat.inspect()).RestartCount]; });

  const one = await docker.createContainer({
    name: 'nodeone', Image: 'busybox', Labels: { from: 'node' }, Env: ['A=b'], ExposedPorts: { '80/tcp': {} }, StopTimeout: 1,
    Cmd: ['sh', '-c', 'for i in 1 2 3; do echo line $i; done; mkdir /w; echo page >/w/index.html; exec httpd -f -p 80 -h /w'],
    Healthcheck: { Test: ['CMD-SHELL', 'wget -qO- localhost'], Interval: 2e8, Retries: 2 },
    HostConfig: { PublishAllPorts: true, RestartPolicy: { Name: 'unless-stopped' }, LogConfig: { Type: 'json-file', Config: {} } },
  });
  await one.start();
  await until(async () => String(await one.logs({ stdout: true })).includes('line 3'));
  const follow = await one.logs({ follow: true, stdout: true, stderr: true, tail: 2, since: 0 });
  const followed = apart(one, follow);
  await step('healthy', () => until(async () => (await one.inspect()).State.Health.Status === 'healthy'));
  await step('reached', async () => {
    const port = (await one.inspect()).NetworkSettings.Ports['80/tcp'][0].HostPort;
    return (await fetch(`http://127.0.0.1:${port}/`)).text();
  });
  await step('exec', async () => {
    const exec = await one.exec({ Cmd: ['sh', '-c', 'read x; echo got $x; echo $C >&2; exit 9'], Env: ['C=d'], AttachStdin: true, AttachStdout: true, AttachStderr: true });
    const stream = await exec.start({ hijack: true, stdin: true });
    const texts = apart(one, stream);
    stream.write('typed\n');
    const value = await texts;
    const after = await exec.inspect();
    return [value, after.ExitCode, after.Running, after.OpenStdin, after.ProcessConfig.entrypoint];
  });
  await step('exec on a terminal', async () => {
    const exec = await one.exec({ Cmd: ['sh', '-c', 'sleep 0.5; stty size'], AttachStdout: true, Tty: true });
    const stream = await exec.start({ Tty: true });
    const text = whole(stream);
    await exec.resize({ h: 31, w: 97 });
    return String(await text);
  });
  await step('exec of nothing', async () => {
    const exec = await one.exec({ Cmd: ['nosuch'], AttachStdout: true, AttachStderr: true });
    await whole(await exec.start({}));
    return (await exec.inspect()).ExitCode;
  });
  await step('exec without a command', () => one.exec({ Cmd: [] }));
  fs.writeFileSync(path.join(folder, 'put'), 'put there\n', { mode: 0o600 });
  await step('put', () => one.putArchive(tar.pack(folder, { entries: ['put'] }), { path: '/root' }).then(() => true));
  await step('put nowhere', () => one.putArchive(tar.pack(folder, { entries: ['put'] }), { path: '/nosuch' }));
  await step('is there', async () => part(JSON.parse(Buffer.from((await one.infoArchive({ path: '/root/put' })).headers['x-docker-container-path-stat'], 'base64')), 'name', 'size', 'mode', 'linkTarget'));
  await step('get', async () => String(await whole(await one.getArchive({ path: '/root/put' }))).includes('put there'));
  await step('stats', async () => Object.keys(await one.stats({ stream: false })).filter((key) => ['read', 'cpu_stats', 'memory_stats', 'pids_stats', 'networks', 'name'].includes(key)).sort());
  await step('stats stream', async () => {
    const stream = await one.stats({ stream: true });
    const first = await new Promise((resolve) => stream.once('data', resolve));
    stream.destroy();
    return JSON.parse(String(first)).name;
  });
  await step('top', async () => (await one.top({ ps_args: '-o pid,comm' })).Titles);
  await step('changes', async () => (await one.changes()).filter((each) => each.Path.startsWith('/w')));
  await step('commit', async () => {
    const made = await one.commit({ repo: 'nodecommitted', tag: '1', comment: 'said', author: 'me', changes: ['ENV D=e', 'EXPOSE 90'] });
    const image = await docker.getImage('nodecommitted:1').inspect();
    return [made.Id.slice(0, 7), image.Comment, image.Author, image.Config.Env.sort(), Object.keys(image.Config.ExposedPorts).sort()];
  });
  await step('listed', async () => (await docker.listContainers({ all: true, filters: { label: ['from=node'] } })).map((each) => [each.Names[0], each.State, each.Ports.filter((port) => !port.IP.includes(':')).map((port) => port.PrivatePort)]).sort());
  await step('size', async () => (await docker.listContainers({ size: true, filters: { name: ['nodeone'] } }))[0].SizeRw > 0);
  await step('update', () => one.update({ RestartPolicy: { Name: 'no' } }).then((value) => Object.keys(value)));
  await step('rename', async () => { await one.rename({ name: 'nodetwo' }); return (await one.inspect()).Name; });
  await step('remove running', () => one.remove());
  await step('restart', async () => { await one.restart({ t: 0 }); return (await one.inspect()).State.Running; });
  await step('stop', () => one.stop().then(() => true));
  await step('stop again', () => one.stop());
  await step('followed', async () => (await followed)[0].split('\n').slice(0, 2));
  await step('data in use', () => docker.getVolume('nodedata').remove());
  await step('prune', async () => (await docker.pruneContainers({ filters: { label: ['from=node'] } })).ContainersDeleted.length);
  await step('gone', () => one.inspect());
  await step('data', async () => part(await docker.getVolume('nodedata').inspect(), 'Name', 'Driver', 'Scope', 'Labels', 'Options'));
  await step('data goes', () => docker.getVolume('nodedata').remove().then(() => true));
  await until(() => seen.filter((each) => each === 'destroy').length === 2);
  events.destroy();
  said.events = seen.filter((each) => !each.startsWith('exec') && !each.startsWith('health')).reduce((all, each) => ({ ...all, [each]: (all[each] || 0) + 1 }), {});
}

async function others() {
  await step('network', async () => {
    const made = await docker.createNetwork({ Name: 'nodenet', Internal: true, EnableIPv6: false, IPAM: { Config: [{ Subnet: '10.98.7.0/24', Gateway: '10.98.7.9' }] }, Labels: { a: 'b' } });
    return part(await made.inspect(), 'Name', 'Driver', 'Internal', 'EnableIPv6', 'Labels', 'Attachable', 'Ingress', 'Containers');
  });
  await step('addresses', async () => (await docker.getNetwork('nodenet').inspect()).IPAM.Config);
  await step('same name', () => docker.createNetwork({ Name: 'nodenet' }));
  await step('overlap', () => docker.createNetwork({ Name: 'nodelap', IPAM: { Config: [{ Subnet: '10.98.7.0/25' }] } }));
  const still = await docker.createContainer({ Image: 'busybox', Cmd: ['sleep', '100'], name: 'nodestill', HostConfig: { NetworkMode: 'none' } });
  await step('connect to none', () => docker.getNetwork('nodenet').connect({ Container: 'nosuch' }));
  await step('connect beside none', async () => { await docker.getNetwork('nodenet').connect({ Container: still.id, EndpointConfig: { Aliases: ['x'], IPAMConfig: { IPv4Address: '10.98.7.50' } } }); return Object.keys((await still.inspect()).NetworkSettings.Networks); });
  await still.remove({ force: true });
  await step('network pruned', async () => (await docker.pruneNetworks({ filters: { label: ['a=b'] } })).NetworksDeleted);
  await step('images pruned', async () => Boolean(await docker.pruneImages({ filters: { dangling: ['true'] } })));
  await step('df', async () => Object.keys(await docker.df()).filter((key) => !key.endsWith('Usage')).sort()); // API 1.52's
  await step('ping', async () => String(await docker.ping()));
  await step('info', async () => part(await docker.info(), 'OSType', 'CgroupVersion', 'Swarm').OSType);
  await step('checkAuth', () => docker.checkAuth({ username: 'u', password: 'p', serveraddress: 'localhost:1' }));
  await step('no exec', () => docker.getExec('nosuch').inspect());
  await step('no volume', () => docker.getVolume('nosuch').inspect());
  await step('no network', () => docker.getNetwork('nosuch').inspect());
  await step('swarm', () => docker.swarmInspect());
  await step('services', () => docker.listServices());
  for (const name of ['nodebuilt:1', 'nodecommitted:1']) await step(`${name} goes`, async () => Boolean(await docker.getImage(name).remove()));
}

(async () => {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'node-'));
  await images(folder);
  await run();
  await containers(folder);
  await others();
  console.log(JSON.stringify(said));
  process.exit(0);
})().catch((error) => { console.error(error); process.exit(1); });
