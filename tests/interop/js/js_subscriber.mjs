// js-libp2p as a subscriber: gossipsub with StrictSign; takes commands as JSON lines, answers in JSON lines, tells of messages.
// What it checks of a card is done with js-libp2p's own keys, as chapter 3 of the specification says.
// Commands: dial (address), subscribe (topic), publish (topic, hex), mesh (topic), connected.
import { createInterface } from 'node:readline'
import { quic } from '@chainsafe/libp2p-quic'
import { gossipsub } from '@libp2p/gossipsub'
import { identify, identifyPush } from '@libp2p/identify'
import { ping } from '@libp2p/ping'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'

const RECORD_DOMAIN = new TextEncoder().encode('isochrone-record-v1:')
const SIGNATURE_BYTES = 64
const WAIT_MS = 20_000

const tell = message => process.stdout.write(JSON.stringify(message) + '\n')
const text = error => error instanceof Error ? `${error.name}: ${error.message}` : JSON.stringify(error)
process.on('unhandledRejection', error => process.stderr.write(`unhandled: ${text(error)}\n`))

// Whether an envelope's signature is its author's, checked with the key that stands in the author's peer id.
async function isCard (author, data) {
  if (data.length < SIGNATURE_BYTES) return false
  const signed = new Uint8Array([...RECORD_DOMAIN, ...data.subarray(SIGNATURE_BYTES)])
  return await author.publicKey.verify(signed, data.subarray(0, SIGNATURE_BYTES))
}

const node = await createLibp2p({
  addresses: { listen: ['/ip4/127.0.0.1/udp/0/quic-v1'] },
  transports: [quic()],
  connectionManager: { reconnectRetries: 0, inboundConnectionThreshold: Infinity }, // else 5 a second from one host
  services: {
    identify: identify(),
    identifyPush: identifyPush(),
    ping: ping(),
    pubsub: gossipsub({ globalSignaturePolicy: 'StrictSign', allowPublishToZeroTopicPeers: true })
  }
})
const pubsub = node.services.pubsub
pubsub.addEventListener('message', async ({ detail: message }) => {
  tell({
    event: 'message',
    from: message.from.toString(),
    seqno: Number(message.sequenceNumber),
    topics: [message.topic],
    data: Buffer.from(message.data).toString('hex'),
    is_card: await isCard(message.from, message.data)
  })
})

const commands = {
  async dial ({ address }) { await node.dial(multiaddr(address), { signal: AbortSignal.timeout(WAIT_MS) }) },
  async subscribe ({ topic }) { pubsub.subscribe(topic) },
  async publish ({ topic, hex }) { await pubsub.publish(topic, Uint8Array.from(Buffer.from(hex, 'hex'))) },
  async mesh ({ topic }) { return { peers: pubsub.getMeshPeers(topic) } },
  async connected () { return { peers: node.getPeers().map(String) } }
}

tell({ event: 'ready', peer_id: node.peerId.toString(), addresses: node.getMultiaddrs().map(String) })
for await (const line of createInterface({ input: process.stdin })) {
  const { id, do: name, ...rest } = JSON.parse(line)
  commands[name](rest)
    .then(answer => tell({ id, ok: true, ...answer }), error => tell({ id, ok: false, error: text(error) }))
}
await node.stop()
process.exit(0)
