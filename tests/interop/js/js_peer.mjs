// js-libp2p as a peer: takes commands as JSON lines on its input, answers in JSON lines. See ../README.md for the commands.
import { createHash } from 'node:crypto'
import { createInterface } from 'node:readline'
import { quic } from '@chainsafe/libp2p-quic'
import { identify, identifyPush } from '@libp2p/identify'
import { ping } from '@libp2p/ping'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'

const PING = '/ipfs/ping/1.0.0'
const IDENTIFY = '/ipfs/id/1.0.0'
const CHUNK_BYTES = 65536
const WAIT_MS = 20_000

const tell = message => process.stdout.write(JSON.stringify(message) + '\n')
const patience = () => AbortSignal.timeout(WAIT_MS)
const text = error => error instanceof Error ? `${error.name}: ${error.message}` : JSON.stringify(error)

// The QUIC transport lets the rejections of its native streams go unhandled when a stream is reset that is over already.
process.on('unhandledRejection', error => process.stderr.write(`unhandled: ${text(error)}\n`))

// The bytes that both ends of a transfer know: 0 to 250 again and again.
const pattern = bytes => Uint8Array.from({ length: bytes }, (_, index) => index % 251)

async function sendAll (stream, data) {
  for (let start = 0; start < data.length; start += CHUNK_BYTES) {
    if (!stream.send(data.subarray(start, start + CHUNK_BYTES))) await stream.onDrain({ signal: patience() })
  }
}

// The stream's own iterator waits for ever when the peer's end came before the reader.
async function * chunks (stream) {
  const waiting = []
  let wake = () => {}
  let failure
  stream.addEventListener('message', event => { waiting.push(event.data); wake() })
  for (const name of ['remoteCloseWrite', 'end', 'close']) {
    stream.addEventListener(name, event => { failure ??= event.error; wake() })
  }
  while (true) {
    const woken = new Promise(resolve => { wake = resolve })
    if (waiting.length > 0) yield waiting.shift()
    else if (failure != null) throw failure
    else if (stream.readBufferLength === 0 && (stream.remoteWriteStatus === 'closed' || stream.status !== 'open')) return
    else await woken
  }
}

async function readAll (stream) {
  const digest = createHash('sha256')
  let bytes = 0
  for await (const chunk of chunks(stream)) {
    digest.update(chunk.subarray())
    bytes += chunk.byteLength
  }
  return { bytes, sha256: digest.digest('hex') }
}

const handlers = {
  '/interop/echo/1': async stream => {
    for await (const chunk of chunks(stream)) {
      if (!stream.send(chunk)) await stream.onDrain({ signal: patience() })
    }
    await stream.close()
  },
  '/interop/count/1': async stream => {
    await sendAll(stream, new TextEncoder().encode(JSON.stringify(await readAll(stream))))
    await stream.close()
  },
  '/interop/reset/1': async stream => {
    for await (const _ of chunks(stream)) {
      stream.abort(new Error('reset on purpose'))
      return
    }
  },
  '/interop/endless/1': async stream => {
    try {
      while (true) {
        await sendAll(stream, pattern(CHUNK_BYTES))
        await new Promise(setImmediate)
      }
    } catch (error) {
      tell({ event: 'stopped', error: text(error), status: stream.status })
      stream.abort(error)
    }
  }
}

const node = await createLibp2p({
  addresses: { listen: ['/ip4/127.0.0.1/udp/0/quic-v1'] },
  transports: [quic()],
  connectionManager: { reconnectRetries: 0, inboundConnectionThreshold: Infinity }, // else 5 a second from one host
  connectionMonitor: { enabled: false }, // its pings would take the one ping stream that js-libp2p allows itself
  services: { identify: identify(), identifyPush: identifyPush(), ping: ping() }
})
for (const [protocol, handler] of Object.entries(handlers)) {
  await node.handle(protocol, stream => { handler(stream).catch(error => stream.abort(error)) }, { maxInboundStreams: 1024, maxOutboundStreams: 1024 })
}

const connectionTo = peer => {
  const found = node.getConnections().find(connection => connection.remotePeer.toString() === peer && connection.status === 'open')
  if (found == null) throw new Error(`not connected to ${peer}`)
  return found
}

const identified = peer => new Promise((resolve, reject) => {
  const give = setTimeout(() => reject(new Error('no identify')), WAIT_MS)
  node.addEventListener('peer:identify', function heard (event) {
    if (peer != null && event.detail.peerId.toString() !== peer) return
    clearTimeout(give)
    node.removeEventListener('peer:identify', heard)
    resolve(performance.now())
  })
})

const commands = {
  async dial ({ address }) {
    const started = performance.now()
    const told = identified()
    told.catch(() => {})
    const connection = await node.dial(multiaddr(address), { signal: patience() })
    const connectedS = (performance.now() - started) / 1000
    return { peer_id: connection.remotePeer.toString(), connected_s: connectedS, identified_s: (await told - started) / 1000 }
  },
  // Wait until the peer is connected and the automatic identify, which allows no other beside it, is over.
  async meet ({ peer }) {
    while (true) {
      const connection = node.getConnections().find(found => found.remotePeer.toString() === peer && found.status === 'open')
      if (connection != null && !connection.streams.some(stream => stream.protocol === IDENTIFY)) {
        const found = await node.peerStore.get(connection.remotePeer).catch(() => ({ protocols: [] }))
        if (found.protocols.length > 1) return
      }
      await new Promise(resolve => setTimeout(resolve, 1))
    }
  },
  async hang_up ({ peer }) {
    await connectionTo(peer).close()
  },
  async connected () {
    return { peers: node.getPeers().map(peer => peer.toString()) }
  },
  async ping ({ peer, count }) {
    const connection = connectionTo(peer)
    for (let index = 0; index < count; index++) {
      await node.services.ping.ping(connection.remotePeer, { signal: patience() })
      // The service allows one stream at a time and returns before it has seen the end of the one it used.
      while (connection.streams.some(stream => stream.protocol === PING)) await new Promise(setImmediate)
    }
  },
  async round_trips ({ peer, count }) {
    const stream = await connectionTo(peer).newStream(PING)
    const times = []
    const echoes = chunks(stream)
    for (let index = 0; index < count; index++) {
      const started = performance.now()
      stream.send(crypto.getRandomValues(new Uint8Array(32)))
      for (let left = 32; left > 0;) left -= (await echoes.next()).value.byteLength
      times.push((performance.now() - started) / 1000)
    }
    await stream.close()
    return { times_s: times }
  },
  async identify ({ peer }) {
    const said = await node.services.identify.identify(connectionTo(peer), { signal: patience() })
    return {
      agent: said.agentVersion,
      protocol_version: said.protocolVersion,
      protocols: said.protocols,
      addresses: said.listenAddrs.map(String),
      observed: said.observedAddr?.toString(),
      record: said.signedPeerRecord && {
        sequence: Number(said.signedPeerRecord.seq),
        addresses: said.signedPeerRecord.addresses.map(String)
      }
    }
  },
  async known ({ peer }) {
    const found = await node.peerStore.get(connectionTo(peer).remotePeer)
    return {
      protocols: found.protocols,
      addresses: found.addresses.map(({ multiaddr }) => multiaddr.toString()),
      certified: found.addresses.every(({ isCertified }) => isCertified)
    }
  },
  async serve ({ protocol }) {
    await node.handle(protocol, stream => { stream.abort(new Error('nothing is served')) })
  },
  async exchange ({ peer, protocol, bytes }) {
    const stream = await connectionTo(peer).newStream(protocol)
    const answer = readAll(stream)
    await sendAll(stream, pattern(bytes))
    await stream.close()
    return await answer
  },
  async ask ({ peer, protocol, bytes }) {
    const stream = await connectionTo(peer).newStream(protocol)
    await sendAll(stream, pattern(bytes))
    await stream.close()
    let said = ''
    for await (const chunk of chunks(stream)) said += new TextDecoder().decode(chunk.subarray())
    return { said }
  },
  async raw ({ peer, hex, end }) {
    const stream = await connectionTo(peer).muxer.createStream()
    await sendAll(stream, Uint8Array.from(Buffer.from(hex, 'hex')))
    if (end) await stream.close()
    let said = ''
    for await (const chunk of chunks(stream)) said += Buffer.from(chunk.subarray()).toString('hex')
    return { hex: said, status: stream.status }
  },
  async reset ({ peer, protocol }) {
    const stream = await connectionTo(peer).newStream(protocol)
    await sendAll(stream, pattern(10))
    for await (const _ of chunks(stream)) break
    stream.abort(new Error('reset on purpose'))
  },
  async stop (fields) {
    await commands.reset(fields) // abort sends RESET_STREAM and STOP_SENDING; there is no way to send one alone
  },
  async watch ({ peer, protocol }) {
    const stream = await connectionTo(peer).newStream(protocol)
    await sendAll(stream, pattern(10))
    try {
      return { ended: 'end', ...await readAll(stream), status: stream.status }
    } catch (error) {
      return { ended: 'error', error: text(error), status: stream.status }
    }
  },
  async many ({ peer, protocol, count }) {
    const streams = []
    for (let index = 0; index < count; index++) {
      const stream = await connectionTo(peer).newStream(protocol)
      await sendAll(stream, pattern(10))
      streams.push(stream)
    }
    let bytes = 0
    for (const stream of streams) await stream.close()
    for (const stream of streams) bytes += (await readAll(stream)).bytes
    return { bytes }
  }
}

tell({ event: 'ready', peer_id: node.peerId.toString(), addresses: node.getMultiaddrs().map(String) })
for await (const line of createInterface({ input: process.stdin })) {
  const { id, do: name, ...rest } = JSON.parse(line)
  commands[name](rest)
    .then(answer => tell({ id, ok: true, ...answer }), error => tell({ id, ok: false, error: text(error) }))
}
await node.stop()
process.exit(0)
