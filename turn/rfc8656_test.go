package turn

import "github.com/pion/stun/v3"

// rfc8656 is what TURN requires of a server.
var rfc8656 = []requirement{
	{
		section: "5", text: "Every request but Binding is authenticated by the long-term mechanism.",
		by: "turn:Gate.Admit", tests: "turn:TestAdmitOrder",
		name: "Unauthenticated", code: 401, ask: func(c *core) *answerSeen {
			return c.send(alice(), plain(stun.MethodCreatePermission, txid(1), peer(peerA)))
		},
	},
	{
		section: "5", text: "A nonce is new and random with the first Allocate, and over within the hour.",
		by: "turn:Gate.nonceFor turn:Gate.nonceValid", tests: "turn:TestNonce",
		but: "a nonce is the time it was made with a MAC over that and the client's address, so that nothing is kept of who has proved nothing. Two of one millisecond are the same.",
	},
	{
		section: "5", text: "Requests on an allocation are of the user who made it.",
		by: "turn:Decide turn:Rules.same", tests: "turn:TestRefresh/OtherUser turn:TestCreatePermission/OtherUser turn:TestChannelBind/OtherUser turn:TestUsersOfTwoRealmsAreTwo",
		name: "WrongCredentials", code: 441, ask: func(c *core) *answerSeen {
			c.allocated(alice())
			return c.do(newCaller("bob", "builder", alice().Client.String()), stun.MethodRefresh, lifetime(0))
		},
	},
	{
		section: "5", text: "A request without an allocation, other than Allocate, is a mismatch.",
		by: "turn:refresh turn:createPermission turn:channelBind", tests: "turn:TestRefresh/NoAllocation turn:TestCreatePermission/NoAllocation turn:TestChannelBind/NoAllocation turn:TestOverdueIsNotLive",
		name: "NoAllocation", code: 437, ask: asked(stun.MethodChannelBind, channel(0x4000), peer(peerA)),
	},
	{
		section: "5", text: "Indications and ChannelData without an allocation are ignored.",
		by: "turn/relay:hand.channelData turn/relay:hand.sendIndication", tests: "turn/relay:TestMalformedFramesAreDropped",
	},
	{
		section: "5", text: "Clients come over UDP; TCP, TLS and DTLS are served too.",
		by: "turn/relay:Server.listen turn/relay:Server.listenStream turn/relay:Server.listenDTLS", tests: "turn/relay:TestStreamsRelay test:TestPionClient test:TestPionClientOnStreams test:TestConformance",
	},
	{
		section: "5", text: "A retransmission is recognized, and has the effect of one request.",
		by: "turn:recall", tests: "turn:TestRetransmission turn:TestRefreshToZeroTwice turn:TestSameTransactionInOtherMethods turn:TestAnswerOutlivesItsAllocation",
	},
	{
		section: "5", text: "SOFTWARE is in the answers to Allocate and Refresh.",
		by: "turn:Reply.Append", tests: "turn:TestRequirements",
		but: "the setting `software` can leave it out.",
	},
	{
		section: "5", text: "Data over a bandwidth quota is discarded.",
		by: "turn:Caps.Take turn/relay:Server.within bpf/turnstone.c", tests: "turn:TestCapHoldsOverAnyTraffic turn/relay:TestCapsOfUsersAndInTotal test:TestCapHoldsInBothPaths test:TestCapsOfUsersAndInTotalHold test:TestCapOfAUserHoldsForBothPathsTogether",
	},
	{
		section: "6", text: "An allocation ends when its time is over, and by nothing but a Refresh does it last longer.",
		by: "turn:Expire turn/relay:flow.channel turn/relay:flow.permits", tests: "turn:TestTranscripts/expiry turn/relay:TestChannelAndAllocationEndThoughItCannotBeRecorded turn/relay:TestExpiredAllocationIsRecordedAndItsPortIsFree test:TestKernelStopsWhenTheGrantIsOver",
	},
	{
		section: "6", text: "The password is not stored, but the key made of it.",
		by: "turn:User cmd/turnstone/internal/users", tests: "cmd/turnstone/internal/users:TestKeys cmd/turnstone/internal/users:TestEditIsReadBack",
		but: "the configuration may have a password instead of a key, and the secret of time-limited credentials yields passwords. The users file has keys alone.",
	},
	{
		section: "7.2(1)", text: "Allocate is authenticated.",
		by: "turn:Gate.Admit", tests: "turn:TestAdmitOrder/NoIntegrity",
		name: "Unauthenticated", code: 401, ask: func(c *core) *answerSeen {
			return c.send(alice(), plain(allocateMethod, txid(1), transport(transportUDP), lifetime(600)))
		},
	},
	{
		section: "7.2(2)", text: "A five-tuple has one allocation.",
		by: "turn:allocate turn:Decide", tests: "turn:TestAllocate/Again turn:TestAllocate/AgainWithoutTransport turn:TestAllocate/AgainByAnother turn:TestModernClients",
		name: "AllocateTwice", code: 437, ask: holding(allocateMethod, transport(transportUDP)),
	},
	{
		section: "7.2(3)", text: "REQUESTED-TRANSPORT is there and whole.",
		by: "turn:allocate", tests: "turn:TestAllocate/NoTransport turn:TestAllocate/TransportOfOtherLength",
		name: "NoTransport", code: 400, ask: asked(allocateMethod, lifetime(600)),
	},
	{
		section: "7.2(3)", text: "It names a protocol that is served: UDP, or TCP (RFC 6062).",
		by: "turn:allocate", tests: "turn:TestAllocate/SCTP turn:TestAllocate/TransportBeforeFamily",
		name: "SCTP", code: 442, ask: asked(allocateMethod, transport(132)),
	},
	{
		section: "7.2(4)", text: "DONT-FRAGMENT is unknown to a server that cannot set DF.",
		by: "turn/relay:hand.sendIndication turn/relay:outbox.sendWhole", tests: "turn:TestAllocate/DontFragment test:TestDontFragment",
		but: "DF can be set wherever the relay runs, so that it is known always.",
	},
	{
		section: "7.2(5)", text: "RESERVATION-TOKEN does not come with EVEN-PORT.",
		by: "turn:allocate", tests: "turn:TestTranscripts/reservations",
		name: "TokenAndEvenPort", code: 400, ask: asked(allocateMethod, transport(transportUDP), token(ReservationToken{1}), evenPort(0)),
	},
	{
		section: "7.2(5)", text: "RESERVATION-TOKEN does not come with REQUESTED-ADDRESS-FAMILY.",
		by: "turn:Request.asksFamilies", tests: "turn:TestAllocate/TokenAndFamily",
		name: "TokenAndFamily", code: 400, ask: asked(allocateMethod, transport(transportUDP), token(ReservationToken{1}), family(familyIPv4)),
	},
	{
		section: "7.2(5)", text: "RESERVATION-TOKEN does not come with ADDITIONAL-ADDRESS-FAMILY.",
		by:   "turn:Request.asksFamilies",
		name: "TokenAndAdditional", code: 400, ask: asked(allocateMethod, transport(transportUDP), token(ReservationToken{1}), additional(familyIPv6)),
	},
	{
		section: "7.2(5)", text: "The token is one that still reserves a port.",
		by: "turn:redeem", tests: "turn:TestAllocate/TokenOfNone turn:TestAllocate/TokenOfZeros turn:TestTranscripts/reservations turn:TestReservationIsOfItsRealm",
		but:  "it is good for the user who was given it alone; the RFC lets anybody have the port.",
		name: "TokenOfNone", code: 508, ask: asked(allocateMethod, transport(transportUDP), token(ReservationToken{1})),
	},
	{
		section: "7.2(6)", text: "REQUESTED-ADDRESS-FAMILY and ADDITIONAL-ADDRESS-FAMILY do not come together.",
		by: "turn:Request.asksFamilies", tests: "turn:TestAllocate/UnknownFamilyAndAdditional",
		name: "FamilyAndAdditional", code: 400, ask: asked(allocateMethod, transport(transportUDP), family(familyIPv4), additional(familyIPv6)),
	},
	{
		section: "7.2(7)", text: "The family asked for is one that the server has.",
		by: "turn:plans turn:Request.asksFamilies", tests: "turn:TestAllocate/UnknownFamily turn:TestAllocate/NoIPv6Here turn:TestTranscripts/families",
		name: "NoIPv6", code: 440, ask: under(func(r *Rules) { r.Relays = r.Relays[:1] }, asked(allocateMethod, transport(transportUDP), family(familyIPv6))),
	},
	{
		section: "7.2(7)", text: "Who asks for no family gets IPv4, or is told that there is none.",
		by: "turn:plans", tests: "turn:TestAllocate/Default turn:TestAllocate/NoIPv4Here",
		name: "NoIPv4", code: 440, ask: under(func(r *Rules) { r.Relays = r.Relays[1:] }, asked(allocateMethod, transport(transportUDP))),
	},
	{
		section: "7.2(8)", text: "EVEN-PORT that reserves the next port does not come with ADDITIONAL-ADDRESS-FAMILY.",
		by: "turn:Request.asksFamilies", tests: "turn:TestAllocate/PairAndAdditional",
		name: "PairAndAdditional", code: 400, ask: asked(allocateMethod, transport(transportUDP), evenPort(0x80), additional(familyIPv6)),
	},
	{
		section: "7.2(8)", text: "EVEN-PORT is met, or the request is refused.",
		by: "turn:PortPlan.Candidates turn:portSet.free", tests: "turn:TestAllocate/NoEvenPortFree turn:TestAllocate/NoPairFree turn:TestAllocate/NextPortDoesNotBind turn:TestAllocate/OnePortForAPair turn:TestPortsOfANearlyFullRange",
		name: "NoEvenPort", code: 508, ask: under(func(r *Rules) { r.FirstPort, r.LastPort = 50001, 50001 }, asked(allocateMethod, transport(transportUDP), evenPort(0))),
	},
	{
		section: "7.2(9)", text: "ADDITIONAL-ADDRESS-FAMILY is IPv6.",
		by: "turn:Request.asksFamilies", tests: "turn:TestAllocate/AdditionalIPv4 turn:TestAllocate/AdditionalUnknown turn:TestAllocate/AdditionalOfOtherLength",
		name: "AdditionalIPv4", code: 400, ask: asked(allocateMethod, transport(transportUDP), additional(familyIPv4)),
	},
	{
		section: "7.2(9)", text: "Where neither of two families can be had, the request is refused.",
		by: "turn:DecideBound", tests: "turn:TestAllocate/NeitherBinds",
		name: "NeitherFamily", code: 508, ask: func(c *core) *answerSeen {
			c.rules.FirstPort, c.rules.LastPort = 50000, 50000
			c.mustDo(0, bob(), allocateMethod, transport(transportUDP), additional(familyIPv6))
			return c.do(alice(), allocateMethod, transport(transportUDP), additional(familyIPv6))
		},
	},
	{
		section: "7.2(9)", text: "Where one of two families can be had, ADDRESS-ERROR-CODE says why the other cannot: 440 or 508.",
		by: "turn:Request.lacking turn:lack.value", tests: "turn:TestTranscripts/dual turn/relay:TestOneFamilyWithoutPorts",
	},
	{
		section: "7.2(10)", text: "A user has no more than its quota, which counts by username.",
		by: "turn:lacks turn:Owner", tests: "turn:TestAllocate/Quota turn:TestAllocate/QuotaOfAnother turn:TestQuotaCountsTimeLimitedCredentialsOfOneUser turn:TestQuotaOfARealm turn:TestTranscripts/quota",
		name: "Quota", code: 486, ask: func(c *core) *answerSeen {
			c.rules.MaxPerOwner = 1
			c.allocated(newCaller("alice", "wonderland", "198.51.100.1:6000"))
			return c.do(alice(), allocateMethod, transport(transportUDP))
		},
	},
	{
		section: "7.2(11)", text: "A server may send clients elsewhere.",
		by: "turn:redirect", tests: "turn:TestRedirect turn:TestTranscripts/redirect turn/relay:TestRedirectIsDurableBeforeItIsAnswered",
		name: "TryAlternate", code: 300, ask: under(func(r *Rules) { r.Redirect, r.Alternates = true, alternates(otherV4) }, asked(allocateMethod, transport(transportUDP))),
	},
	{
		section: "7.2", text: "Where there is no relayed transport address left the request is refused.",
		by: "turn:lacks turn:DecideBound", tests: "turn:TestAllocate/NoPortFree turn:TestAllocate/NoPortBinds turn:TestAllocate/Total turn:TestAllocate/Draining turn:TestAllocate/DiskLow",
		name: "NoPort", code: 508, ask: func(c *core) *answerSeen {
			c.rules.FirstPort, c.rules.LastPort = 50000, 50000
			c.allocated(bob())
			return c.do(alice(), allocateMethod, transport(transportUDP))
		},
	},
	{
		section: "7.2", text: "A reserved port waits for its token for at least 30 seconds, whatever the five-tuple that brings it.",
		by: "turn:ReservationLifetime turn:redeem", tests: "turn:TestTranscripts/reservations turn/relay:TestReservedPortWaitsForItsToken turn/relay:TestReservationOverAnotherTransport turn/relay:TestReservationExpiresAndItsPortIsFree turn/relay:TestReservationOutlivesTheServer",
	},
	{
		section: "7.2", text: "Relayed ports are of 49152 to 65535, and never below 1024; they cannot be guessed.",
		by: "turn:PortPlan.Candidates", tests: "turn:TestAllocate turn:TestPortsComeFromEntropy cmd/turnstone/internal/config:TestResolveErrors/PortsZero",
		but: "the range is a setting, `relay-ports`, and may be another.",
	},
	{
		section: "7.2", text: "The lifetime is what is asked for, no less than the default and no more than the maximum.",
		by: "turn:Rules.lifetime", tests: "turn:TestAllocate/LifetimeBelowDefault turn:TestAllocate/LifetimeZero turn:TestAllocate/LifetimeAtCap turn:TestAllocate/LifetimeAboveCap",
		but: "with an access token it is no more than that grants (RFC 7635 section 9).",
	},
	{
		section: "7.2", text: "Success has XOR-RELAYED-ADDRESS, LIFETIME, XOR-MAPPED-ADDRESS, and RESERVATION-TOKEN where a port was reserved.",
		by: "turn:Reply.grant turn:Reply.addAttributes", tests: "turn:TestAllocate/Default turn:TestTranscripts/reservations turn:TestTranscripts/allocate_refresh_delete",
	},
	{
		section: "8.2", text: "A Refresh with a family that the allocation has no address of is a mismatch of families.",
		by: "turn:refresh", tests: "turn:TestRefresh/OtherFamily turn:TestRefresh/UnknownFamily turn:TestRefresh/OtherFamilyDeletesNothing",
		name: "OtherFamily", code: 443, ask: holding(stun.MethodRefresh, family(familyIPv6)),
	},
	{
		section: "8.2", text: "With a family a Refresh is for that address of two alone.",
		by: "turn:refreshes turn:State.unrelay turn:State.prolonged", tests: "turn:TestTranscripts/dual turn/relay:TestOneFamilyEndsAndItsPortIsFree",
	},
	{
		section: "8.2", text: "A lifetime of zero deletes the allocation, at once; any other is bounded as with Allocate.",
		by: "turn:refresh", tests: "turn:TestRefresh/Delete turn:TestRefresh/BelowDefault turn:TestRefresh/AboveCap turn/relay:TestRevocationIsDurableThenWithdrawnThenAnswered",
	},
	{
		section: "8.2", text: "Of an allocation that is deleted nothing is left to refresh.",
		by: "turn:refresh", tests: "turn:TestRefreshToZeroTwice",
		name: "DeletedTwice", code: 437, ask: after(func(c *core) { c.mustDo(0, alice(), stun.MethodRefresh, lifetime(0)) }, stun.MethodRefresh, lifetime(0)),
	},
	{
		section: "9", text: "A permission lasts 300 seconds, and a request for it makes it last so again.",
		by: "turn:PermissionLifetime turn:State.permit", tests: "turn:TestCreatePermission turn:TestTranscripts/permissions turn/relay:TestPermissionEndsThoughItCannotBeRecorded",
	},
	{
		section: "9", text: "A permission is for an address, whatever the port; of what comes from elsewhere nothing is relayed.",
		by: "turn/relay:flow.fromPeer turn/relay:shard.fromPeer bpf/turnstone.c", tests: "turn:TestCreatePermission/PortDoesNotMatter turn/relay:TestSendAndDataIndications kernel:TestTable kernel:TestDifferential",
	},
	{
		section: "10.2", text: "CreatePermission has a peer at least, and all of them are whole.",
		by: "turn:createPermission turn:Request.decode", tests: "turn:TestCreatePermission/None turn:TestCreatePermission/Malformed turn:TestCreatePermission/UnknownAddressFamily",
		name: "NoPeer", code: 400, ask: holding(stun.MethodCreatePermission),
	},
	{
		section: "10.2", text: "A malformed peer spoils the request, whatever comes before it.",
		by:   "turn:createPermission",
		name: "MalformedPeer", code: 400, ask: holding(stun.MethodCreatePermission, peer(peerA), set(stun.AttrXORPeerAddress, 0, 1, 2)),
	},
	{
		section: "10.2", text: "A peer is of a family that the allocation has an address of.",
		by: "turn:peerCode", tests: "turn:TestCreatePermission/OtherFamily turn:TestTranscripts/families",
		name: "OtherFamily", code: 443, ask: holding(stun.MethodCreatePermission, peer(peerV6)),
	},
	{
		section: "10.2", text: "A peer that is not allowed is forbidden.",
		by: "turn:Rules.permits turn:Policy.Judge", tests: "turn:TestCreatePermission/Forbidden turn:TestCreatePermission/ForbiddenMapped turn:TestPolicy turn:TestOwnAddresses",
		name: "Forbidden", code: 403, ask: holding(stun.MethodCreatePermission, peer("127.0.0.1:80")),
	},
	{
		section: "10.2", text: "What is over a limit is refused.",
		by: "turn:createPermission", tests: "turn:TestCreatePermission/OverTheLimit turn:TestCreatePermission/OverTheLimitTogether turn:TestCreatePermission/RefreshAtTheLimit",
		name: "TooMany", code: 508, ask: under(func(r *Rules) { r.MaxPermissions = 1 }, holding(stun.MethodCreatePermission, peer(peerA), peer(peerB))),
	},
	{
		section: "10.2", text: "A refused request permits none of its peers.",
		by: "turn:createPermission", tests: "turn:TestCreatePermission",
	},
	{
		section: "11.2", text: "A Send indication without XOR-PEER-ADDRESS or DATA is discarded; one with no data in DATA is relayed.",
		by: "turn:ParseSend", tests: "turn:TestParseSend/NoPeer turn:TestParseSend/NoData turn:TestParseSend/MalformedPeer turn:TestParseSend/Empty turn/relay:TestSendAndDataIndications",
	},
	{
		section: "11.2", text: "A Send indication to a peer without a permission is discarded, and makes none.",
		by: "turn/relay:hand.sendIndication turn/relay:flow.permits", tests: "turn/relay:TestMalformedFramesAreDropped turn/relay:TestPermissionEndsThoughItCannotBeRecorded",
	},
	{
		section: "11.2", text: "What addresses and ports may be sent to is for the server to say.",
		by: "turn/relay:Server.reachable turn:Rules.Guarded", tests: "turn/relay:TestOwnAddressReachesOnlyLiveAllocations turn:TestOwnAddresses",
	},
	{
		section: "11.3", text: "What a peer with a permission sends is a Data indication with XOR-PEER-ADDRESS and DATA, unless a channel is bound to it.",
		by: "turn:AppendDataIndication turn/relay:shard.toClient", tests: "turn/relay:TestSendAndDataIndications turn/relay:TestStreamsRelay",
	},
	{
		section: "11.5", text: "Of ICMP, types 3 and 11 are told of, of ICMPv6 1, 2 and 3: to the client of the relayed address, where the destination has a permission, whoever sent the error.",
		by: "turn:TellICMP turn:AppendICMPIndication turn/relay:shard.tell", tests: "turn/relay:TestWhichICMPErrorsAreTold turn/relay:TestClosedPeerPortIsToldOf turn/relay:TestClosedPeerPortIsToldOfOnStreams test:TestICMPErrors test:TestICMPErrorsOfWhatTheKernelRelayed",
		but: "by default only clients that send with DONT-FRAGMENT are told (`limits.icmp-errors`): an indication without DATA ends the reading of clients that do not expect it, that of pion/turn v4 among them.",
	},
	{
		section: "12", text: "What begins with no byte of STUN or ChannelData is dropped.",
		by: "turn:Classify turn:StreamFrame", tests: "turn:TestClassify turn/relay:TestMalformedFramesAreDropped",
		but: "first bytes of 0x50 to 0x7F are ChannelData, for channel numbers of RFC 5766 are taken by default; with `limits.channel-range = \"rfc8656\"` no such channel can be bound.",
	},
	{
		section: "12", text: "A channel lasts 10 minutes, and a request for it makes it last so again, the permission with it.",
		by: "turn:ChannelLifetime turn:State.bound", tests: "turn:TestChannelBind turn:TestTranscripts/channels",
	},
	{
		section: "12", text: "Channels of an allocation end with it, and are nobody else's.",
		by: "turn:State.remove", tests: "turn:TestLaws turn/relay:TestChannelAndAllocationEndThoughItCannotBeRecorded",
	},
	{
		section: "12.2", text: "ChannelBind has CHANNEL-NUMBER.",
		by: "turn:channelBind", tests: "turn:TestChannelBind/NoChannel turn:TestChannelBind/MalformedChannel",
		name: "NoChannel", code: 400, ask: holding(stun.MethodChannelBind, peer(peerA)),
	},
	{
		section: "12.2", text: "ChannelBind has XOR-PEER-ADDRESS.",
		by: "turn:channelBind", tests: "turn:TestChannelBind/NoPeer turn:TestChannelBind/MalformedPeer",
		name: "NoPeer", code: 400, ask: holding(stun.MethodChannelBind, channel(0x4000)),
	},
	{
		section: "12.2", text: "Channel numbers are 0x4000 to 0x4FFF.",
		by: "turn:channelBind turn:ChannelLast", tests: "turn:TestChannelBind/BelowTheRange turn:TestChannelBind/AboveTheRange turn:TestChannelBind/AboveRFC8656",
		but:  "by default they are 0x4000 to 0x7FFF, as in RFC 5766, from which clients in the field still draw; `limits.channel-range = \"rfc8656\"` is the RFC's.",
		name: "AboveTheRange", code: 400, ask: under(func(r *Rules) { r.LastChannel = ChannelLast }, holding(stun.MethodChannelBind, channel(0x5000), peer(peerA))),
	},
	{
		section: "12.2", text: "A channel is bound to one peer.",
		by: "turn:channelBind", tests: "turn:TestChannelBind/OtherPeerOnTheChannel turn:TestChannelBind/OtherPortOnTheChannel turn:TestChannelBind/SameAgain",
		name: "OtherPeer", code: 400, ask: after(func(c *core) {
			c.mustDo(0, alice(), stun.MethodChannelBind, channel(0x4000), peer(peerA))
		}, stun.MethodChannelBind, channel(0x4000), peer(peerB)),
	},
	{
		section: "12.2", text: "A peer is bound to one channel.",
		by: "turn:channelBind", tests: "turn:TestChannelBind/OtherChannelToThePeer turn:TestChannelBind/OtherChannelToAnotherPort",
		name: "OtherChannel", code: 400, ask: after(func(c *core) {
			c.mustDo(0, alice(), stun.MethodChannelBind, channel(0x4000), peer(peerA))
		}, stun.MethodChannelBind, channel(0x4001), peer(peerA)),
	},
	{
		section: "12.2", text: "The peer is of a family that the allocation has an address of.",
		by: "turn:peerCode", tests: "turn:TestChannelBind/OtherFamily",
		name: "OtherFamily", code: 443, ask: holding(stun.MethodChannelBind, channel(0x4000), peer(peerV6)),
	},
	{
		section: "12.2", text: "A peer that is not allowed is forbidden.",
		by: "turn:peerCode turn:Rules.Guarded", tests: "turn:TestChannelBind/Forbidden turn:TestOwnAddresses",
		name: "Forbidden", code: 403, ask: holding(stun.MethodChannelBind, channel(0x4000), peer("10.0.0.1:80")),
	},
	{
		section: "12.2", text: "What is over a limit is refused.",
		by: "turn:channelBind", tests: "turn:TestChannelBind/ChannelLimit turn:TestChannelBind/PermissionLimit turn:TestChannelBind/RefreshAtTheLimit",
		name: "TooMany", code: 508, ask: under(func(r *Rules) { r.MaxChannels = 0 }, holding(stun.MethodChannelBind, channel(0x4000), peer(peerA))),
	},
	{
		section: "12.5", text: "A peer with a channel is relayed by it.",
		by: "turn/relay:shard.toClient bpf/turnstone.c", tests: "turn/relay:TestSendAndDataIndications kernel:TestTable",
	},
	{
		section: "12.5", text: "On streams ChannelData is padded to a multiple of four bytes, which its length does not count.",
		by: "turn:StreamFrame turn:AppendChannelData", tests: "turn/relay:TestStreamsRelay turn/relay:TestStreamIsReadAsItComes",
	},
	{
		section: "12.6", text: "ChannelData on a channel that is not bound, or of a reserved number, is discarded.",
		by: "turn:ParseChannelData turn/relay:hand.channelData", tests: "turn:TestParseChannelData/BelowTheRange turn:TestParseChannelData/AboveTheRange turn/relay:TestMalformedFramesAreDropped kernel:TestTable",
	},
	{
		section: "12.6", text: "ChannelData longer than its datagram is discarded; what is behind it is ignored.",
		by: "turn:ParseChannelData", tests: "turn:TestParseChannelData/Truncated turn:TestParseChannelData/Oversized turn:TestParseChannelData/Padded kernel:TestCutFrames",
	},
	{
		section: "12.6", text: "ChannelData makes neither its channel nor its permission last longer.",
		by: "turn/relay:hand.channelData bpf/turnstone.c", tests: "turn/relay:TestPermissionEndsThoughItCannotBeRecorded turn/relay:TestChannelAndAllocationEndThoughItCannotBeRecorded test:TestKernelStopsWhenTheGrantIsOver",
	},
	{
		section: "12.6", text: "ChannelData with nothing in it is a datagram with nothing in it.",
		by: "turn/relay:hand.toPeer", tests: "turn/relay:TestChannelDataLengths",
	},
	{
		section: "13", text: "TTL and hop limit fall by one, as at a router, which tells the sender where they are used up.",
		by: "turn/relay:hand.toPeer turn/relay:shard.fromPeer bpf/turnstone.c", tests: "turn/relay:TestTTLFallsByOneAndTOSIsKept turn/relay:TestMixedFamilies kernel:TestTable",
		but: "what has used them up is dropped and counted; no ICMP error is sent.",
	},
	{
		section: "13", text: "The flow label is made of the five-tuple, not copied.",
		by: "bpf/rewrite.h", tests: "kernel:TestTable kernel:TestDifferential",
	},
	{
		section: "13", text: "What is too large for the link to the peer is fragmented or dropped as a router would, or as the host does by default.",
		by: "turn/relay:setOptions bpf/turnstone.c", tests: "test:TestDontFragmentIsIgnored test:TestKernelLearnsThePathMTU kernel:TestTable",
		but: "nobody is sent an ICMP error by the relay itself: what the kernel path cannot send whole passes up, and userspace has the host fragment it, the alternate behaviour.",
	},
	{
		section: "13", text: "Between families, and from IPv6 to IPv6, DONT-FRAGMENT is ignored.",
		by: "turn/relay:seat.wholeTo", tests: "test:TestDontFragmentIsIgnored",
	},
	{
		section: "14", text: "DSCP and ECN are as they came, or the defaults.",
		by: "turn/relay:outbox.push bpf/turnstone.c", tests: "turn/relay:TestTTLFallsByOneAndTOSIsKept turn/relay:TestMixedFamilies kernel:TestTable",
	},
	{
		section: "14", text: "DF is set for a Send indication with DONT-FRAGMENT; else it is as it came, or not set.",
		by: "turn/relay:outbox.sendWhole turn/relay:setOptions", tests: "test:TestDontFragment",
		but: "userspace does not see the DF of what arrives, and takes it for 0: the alternate behaviour. The kernel path copies it.",
	},
	{
		section: "15", text: "From a stream datagrams go with the default DSCP, and no ECN.",
		by: "turn/relay:hopOfStream", tests: "turn/relay:TestDatagramsOfStreamsHaveTheUsualHeader",
	},
	{
		section: "15", text: "DF is set for a Send indication with DONT-FRAGMENT from a stream, and IPv6 is not fragmented then.",
		by: "turn/relay:seat.wholeTo turn/relay:outbox.sendWhole", tests: "test:TestDontFragmentOfStreams",
	},
	{
		section: "18", text: "Attributes of a fixed length have it.",
		by: "turn:Request.word turn:Request.decode", tests: "turn:TestAllocate/LifetimeOfOtherLength turn:TestAllocate/FamilyOfOtherLength turn:TestAllocate/EvenPortOfOtherLength turn:TestAllocate/TokenTooShort turn:TestRefresh/MalformedLifetime",
		name: "LifetimeOfOtherLength", code: 400, ask: asked(allocateMethod, transport(transportUDP), set(stun.AttrLifetime, 1, 2)),
	},
	{
		section: "18", text: "Bits for future use are ignored: behind a protocol, a family or a channel number, and beside the R bit of EVEN-PORT.",
		by: "turn:Request.decode", tests: "turn:TestAllocate/TransportOtherBits turn:TestAllocate/FamilyOtherBits turn:TestAllocate/EvenPortOtherBits turn:TestChannelBind/OtherBits",
	},
	{
		section: "18.1", text: "CHANNEL-NUMBER has four bytes.",
		by: "turn:Request.word", tests: "turn:TestChannelBind/MalformedChannel",
		name: "ChannelOfOtherLength", code: 400, ask: holding(stun.MethodChannelBind, set(stun.AttrChannelNumber, 0x40, 0), peer(peerA)),
	},
	{
		section: "18.3", text: "XOR-PEER-ADDRESS is of IPv4 with 8 bytes or of IPv6 with 20.",
		by: "turn:parseXOR", tests: "turn:TestCreatePermission/UnknownAddressFamily turn:TestParseSend/MalformedPeer",
		name: "UnknownFamily", code: 400, ask: holding(stun.MethodCreatePermission, set(stun.AttrXORPeerAddress, 0, 3, 2, 2, 1, 1, 1, 1)),
	},
	{
		section: "18.10", text: "RESERVATION-TOKEN has eight bytes.",
		by: "turn:Request.decode", tests: "turn:TestAllocate/TokenTooShort",
		name: "TokenTooShort", code: 400, ask: asked(allocateMethod, transport(transportUDP), set(stun.AttrReservationToken, 1, 2, 3, 4, 5, 6, 7)),
	},
	{
		section: "21.2", text: "A relay opens no way into a network: only peers that a client has permitted reach it, and it reaches no address that leads inside.",
		by: "turn/relay:flow.fromPeer turn:forbidden", tests: "turn/relay:TestSendAndDataIndications turn:TestPolicy",
	},
}
